-- Mark a session as ended.
-- KEYS: meta hash, ids string. ARGV: ttl seconds, epoch, finish reason.
-- Replies "OK", "UNKNOWN" or "FENCED <text>".
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch then
  return 'UNKNOWN'
end
if epoch ~= ARGV[2] then
  return 'FENCED epoch ' .. ARGV[2] .. ' does not own the session, ' .. epoch .. ' does'
end
redis.call('HSET', KEYS[1], 'finish', ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[1])
return 'OK'
