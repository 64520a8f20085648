-- Hand a session to a new owner under a later epoch, which fences the old owner out.
-- KEYS: meta hash, ids string. ARGV: ttl seconds, epoch.
-- The epoch is the caller's to choose: a claim that comes late, when its caller has gone on without it,
-- changes nothing.
-- Replies the meta hash (names and values in turn) and the ids, as this claim left them. Or "UNKNOWN", or
-- "FENCED <text>" when the record has that epoch already, or a later one.
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch then
  return 'UNKNOWN'
end
if tonumber(epoch) >= tonumber(ARGV[2]) then
  return 'FENCED epoch ' .. epoch .. ' is recorded already'
end
redis.call('HSET', KEYS[1], 'epoch', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[1])
return {redis.call('HGETALL', KEYS[1]), redis.call('GET', KEYS[2]) or ''}
