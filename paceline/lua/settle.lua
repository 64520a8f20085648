-- Note what has become of one account's requests at one gateway.
-- KEYS: sessions, waiting requests, tokens, as in admit.lua. ARGV: ms that a place lasts, tokens per minute (-1 does
-- not limit), tokens to charge (negative gives back), how many ids run, how many wait; then the ids that run, that
-- wait, and that have ended.
-- What stands under a key and is no count of ours counts as none, as in admit.lua.
-- Replies "OK". An id that was forgotten counts again; one that was let in meanwhile waits no more.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lease, rate, tokens = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local running = 5 + tonumber(ARGV[4])
local waiting = running + tonumber(ARGV[5])
for n, ours in ipairs({'zset', 'zset', 'hash'}) do
  local kind = redis.call('TYPE', KEYS[n]).ok
  if kind ~= ours and kind ~= 'none' then
    redis.call('DEL', KEYS[n])
  end
end
for n = 6, #ARGV do
  if n <= running then
    redis.call('ZADD', KEYS[1], now + lease, ARGV[n])
  elseif n <= waiting then
    if not redis.call('ZSCORE', KEYS[1], ARGV[n]) then
      redis.call('ZADD', KEYS[2], now + lease, ARGV[n])
    end
  else
    redis.call('ZREM', KEYS[1], ARGV[n])
    redis.call('ZREM', KEYS[2], ARGV[n])
  end
end
redis.call('PEXPIRE', KEYS[1], lease)
redis.call('PEXPIRE', KEYS[2], lease)
if rate >= 0 and tokens ~= 0 then
  local known = redis.call('HMGET', KEYS[3], 'level', 'at')
  local level = tonumber(known[1]) or rate
  if level ~= level or level == -math.huge then
    level = rate
  end
  local filled = math.max(0, now - (tonumber(known[2]) or now)) * rate / 60000
  local left = math.min(rate, math.min(rate, level + filled) - tokens)
  redis.call('HSET', KEYS[3], 'level', string.format('%.3f', left), 'at', now)
  redis.call('PEXPIRE', KEYS[3], math.ceil((rate - left) * 60000 / rate) + 1000)
end
return 'OK'
