-- Hand a session to a new owner: its epoch grows by one, which fences the old owner out.
-- KEYS: meta hash, ids string. ARGV: ttl seconds, owner.
-- Replies the meta hash (names and values in turn) and the ids, as this claim left them: read in a
-- later call, another claim's epoch could be taken for one's own. Or "UNKNOWN".
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 'UNKNOWN'
end
redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('HSET', KEYS[1], 'owner', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[1])
return {redis.call('HGETALL', KEYS[1]), redis.call('GET', KEYS[2]) or ''}
