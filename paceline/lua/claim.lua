-- Hand a session to a new owner under a later epoch, which fences the old owner out.
-- KEYS: meta hash, ids string, log-probabilities string. ARGV: ttl seconds, epoch, a word of this claim's own, and why the session ends with it,
-- unless it has ended already, or nothing.
-- The epoch is the caller's to choose: a claim that comes late, when its caller has gone on without it,
-- changes nothing. One that comes again, because the reply was lost, is answered again.
-- Replies the meta hash (names and values in turn), the ids and their log-probabilities, as this claim left them. Or "UNKNOWN", or
-- "FENCED <text>" when the record has that epoch already, or a later one. Half a record is none.
local known = redis.call('HMGET', KEYS[1], 'epoch', 'claim')
local epoch, claim = known[1], known[2]
if not tonumber(epoch) then
  return 'UNKNOWN'
end
if tonumber(epoch) > tonumber(ARGV[2]) or (epoch == ARGV[2] and claim ~= ARGV[3]) then
  return 'FENCED epoch ' .. epoch .. ' is recorded already'
end
local ids = redis.call('GET', KEYS[2])
if not ids then
  return 'UNKNOWN'
end
redis.call('HSET', KEYS[1], 'epoch', ARGV[2], 'claim', ARGV[3])
if ARGV[4] ~= '' and redis.call('HGET', KEYS[1], 'finish') == '' then
  redis.call('HSET', KEYS[1], 'finish', ARGV[4])
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[1])
redis.call('EXPIRE', KEYS[3], ARGV[1])
return {redis.call('HGETALL', KEYS[1]), ids, redis.call('GET', KEYS[3]) or ''}
