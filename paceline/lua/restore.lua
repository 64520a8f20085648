-- Record a session as its owner knows it, unless a later owner's record is there.
-- KEYS: meta hash, ids string. ARGV: ttl seconds, epoch, model, sampling JSON, reply, prompt, committed, why it
-- has ended or nothing.
-- Replies "OK" or "FENCED <text>". One that comes late takes nothing back that its owner has added since.
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if epoch and tonumber(epoch) > tonumber(ARGV[2]) then
  return 'FENCED epoch ' .. ARGV[2] .. ' does not own the session, ' .. epoch .. ' does'
end
local ids = redis.call('GET', KEYS[2])
if epoch == ARGV[2] and ids and string.sub(ids, 1, #ARGV[7]) == ARGV[7] and ARGV[8] == '' then
  return 'OK'
end
redis.call('HSET', KEYS[1], 'epoch', ARGV[2], 'model', ARGV[3], 'sampling', ARGV[4],
  'reply', ARGV[5], 'prompt', ARGV[6], 'finish', ARGV[8])
redis.call('SET', KEYS[2], ARGV[7], 'EX', ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 'OK'
