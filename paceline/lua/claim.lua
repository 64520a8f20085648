-- Hand a session to a new owner: its epoch grows by one, which fences the old owner out.
-- KEYS: meta hash, ids string. ARGV: ttl seconds, owner.
-- Replies "OK" or "UNKNOWN".
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 'UNKNOWN'
end
redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('HSET', KEYS[1], 'owner', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[1])
return 'OK'
