-- Commit ids at an absolute length, if the epoch owns the session.
-- KEYS: meta hash, ids string. ARGV: ttl seconds, epoch, base length, packed ids (4 bytes each).
-- Replies "OK" (also when the same ids stand there already: a retry after a lost reply),
-- "UNKNOWN", "FENCED <text>" or "BASE <text>".
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch then
  return 'UNKNOWN'
end
if epoch ~= ARGV[2] then
  return 'FENCED epoch ' .. ARGV[2] .. ' does not own the session, ' .. epoch .. ' does'
end
local start = tonumber(ARGV[3]) * 4 - redis.call('HSTRLEN', KEYS[1], 'prompt')
local length = redis.call('STRLEN', KEYS[2])
if start == length then
  redis.call('APPEND', KEYS[2], ARGV[4])
elseif start < 0 or start > length or redis.call('GETRANGE', KEYS[2], start, -1) ~= ARGV[4] then
  return 'BASE length ' .. ARGV[3] .. ' does not continue ' .. length / 4 .. ' committed ids'
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[1])
return 'OK'
