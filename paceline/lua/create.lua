-- Record a new session.
-- KEYS: meta hash, ids string. ARGV: ttl seconds, epoch, owner, model, sampling JSON, prompt, committed.
-- Replies "OK", or "EXISTS" when the session is recorded already.
if redis.call('EXISTS', KEYS[1]) == 1 then
  return 'EXISTS'
end
redis.call('HSET', KEYS[1], 'epoch', ARGV[2], 'owner', ARGV[3], 'model', ARGV[4],
  'sampling', ARGV[5], 'prompt', ARGV[6], 'finish', '')
redis.call('SET', KEYS[2], ARGV[7], 'EX', ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 'OK'
