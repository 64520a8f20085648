-- Commit ids at an absolute length, if the epoch owns the session.
-- KEYS: meta hash, ids string, log-probabilities string. ARGV: ttl seconds, epoch, base length, packed ids (4 bytes
-- each), why they are the last, or nothing, and packed log-probabilities of the ids, or nothing.
-- Ids that stand there already are skipped, and only the rest is added: after a lost reply the owner sends
-- the same ids again, with those it has drawn since; and it may not know of what an earlier owner added.
-- Replies "OK", "UNKNOWN", "FENCED <text>" or "BASE <text>". A record that lost what happened since an
-- earlier owner is as good as none, and so is half a record.
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not tonumber(epoch) or tonumber(epoch) < tonumber(ARGV[2]) then
  return 'UNKNOWN'
end
if epoch ~= ARGV[2] then
  return 'FENCED epoch ' .. ARGV[2] .. ' does not own the session, ' .. epoch .. ' does'
end
local start = tonumber(ARGV[3]) * 4 - redis.call('HSTRLEN', KEYS[1], 'prompt')
local length = redis.call('STRLEN', KEYS[2])
if length == 0 and redis.call('EXISTS', KEYS[2]) == 0 then
  return 'UNKNOWN'
end
local known = ''
if start >= 0 and start < length then
  known = redis.call('GETRANGE', KEYS[2], start, -1)
end
local common = math.min(#known, #ARGV[4])
if start < 0 or start > length or string.sub(ARGV[4], 1, common) ~= string.sub(known, 1, common) then
  return 'BASE length ' .. ARGV[3] .. ' does not continue ' .. length / 4 .. ' committed ids'
end
if #ARGV[4] > #known then
  redis.call('APPEND', KEYS[2], string.sub(ARGV[4], #known + 1))
  if ARGV[6] ~= '' then
    redis.call('APPEND', KEYS[3], string.sub(ARGV[6], #ARGV[6] * #known / #ARGV[4] + 1))
  end
end
if ARGV[5] ~= '' then
  redis.call('HSET', KEYS[1], 'finish', ARGV[5])
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[1])
redis.call('EXPIRE', KEYS[3], ARGV[1])
return 'OK'
