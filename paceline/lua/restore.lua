-- Record a session as its owner knows it, unless a later owner's record is there.
-- KEYS: meta hash, ids string, log-probabilities string. ARGV: ttl seconds, epoch, model, sampling JSON, reply,
-- prompt, committed, log-probabilities wanted (JSON), those of committed, why it has ended or nothing.
-- Replies "OK" or "FENCED <text>". One that comes late takes nothing back that its owner has added since. What
-- stands there and is no record gives way.
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then
  redis.call('DEL', KEYS[1])
end
if redis.call('TYPE', KEYS[2]).ok ~= 'string' then
  redis.call('DEL', KEYS[2])
end
local known = redis.call('HMGET', KEYS[1], 'epoch', 'prompt', 'model', 'sampling', 'reply', 'finish')
local epoch = known[1]
if (tonumber(epoch) or 0) > tonumber(ARGV[2]) then
  return 'FENCED epoch ' .. ARGV[2] .. ' does not own the session, ' .. epoch .. ' does'
end
local whole = epoch == ARGV[2] and known[2] == ARGV[6] and known[3] and known[4] and known[5] and known[6]
local ids = redis.call('GET', KEYS[2])
if whole and ids and #ids % 4 == 0 and string.sub(ids, 1, #ARGV[7]) == ARGV[7] and ARGV[10] == '' then
  return 'OK'
end
redis.call('HSET', KEYS[1], 'epoch', ARGV[2], 'model', ARGV[3], 'sampling', ARGV[4],
  'reply', ARGV[5], 'prompt', ARGV[6], 'finish', ARGV[10], 'logprobs', ARGV[8])
redis.call('SET', KEYS[2], ARGV[7], 'EX', ARGV[1])
-- Also where it is empty: while a slot of a cluster moves, a script may name only keys that are there.
redis.call('SET', KEYS[3], ARGV[9], 'EX', ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 'OK'
