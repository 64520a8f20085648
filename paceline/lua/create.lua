-- Record a new session.
-- KEYS: meta hash, ids string, log-probabilities string. ARGV: ttl seconds, epoch, model, sampling JSON, reply,
-- prompt, committed, log-probabilities wanted (JSON), those of committed.
-- Replies "OK", or "EXISTS" when the session is recorded already.
-- What is of another type is no session's.
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'hash' then
  return 'EXISTS'
end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'epoch', ARGV[2], 'model', ARGV[3], 'sampling', ARGV[4],
  'reply', ARGV[5], 'prompt', ARGV[6], 'finish', '', 'logprobs', ARGV[8])
redis.call('SET', KEYS[2], ARGV[7], 'EX', ARGV[1])
-- Also where it is empty: while a slot of a cluster moves, a script may name only keys that are there.
redis.call('SET', KEYS[3], ARGV[9], 'EX', ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 'OK'
