-- Let a request in under all its accounts' limits, give it a place in their queues, or refuse it.
-- KEYS: three for each account, in this order: sessions (sorted set of ids by the ms at which their place ends),
-- waiting requests (likewise), tokens (hash: level, and the ms as of which it holds).
-- ARGV: request id, ms that a place lasts, tokens to charge, 1 if others wait before it; then three for each
-- account: most sessions, most waiting, tokens per minute; -1 does not limit.
-- A request that runs already keeps its places and is not charged again: so it is idempotent.
-- What stands under a key and is no count of ours counts as none, and a time that lies ahead of the server's clock,
-- which has gone back then, as now.
-- Replies ADMITTED and each account's tokens left ('' where not limited), QUEUED and the account (from 1 on) that is
-- full, FULL, the account and how many wait there, or TOKENS, the account and the ms until it has enough.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local id, lease, tokens = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local accounts = #KEYS / 3
local held = 0
for n, key in ipairs(KEYS) do
  local kind, ours = redis.call('TYPE', key).ok, n % 3 == 0 and 'hash' or 'zset'
  if kind ~= ours and kind ~= 'none' then
    redis.call('DEL', key)
  end
  if ours == 'zset' then
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    for _, ahead in ipairs(redis.call('ZRANGEBYSCORE', key, '(' .. now + lease, '+inf', 'LIMIT', 0, 1000)) do
      redis.call('ZADD', key, now + lease, ahead)
    end
  end
end
for n = 1, accounts do
  redis.call('ZREM', KEYS[3 * n - 1], id)
  if redis.call('ZSCORE', KEYS[3 * n - 2], id) then
    held = held + 1
  end
end
if held == accounts then
  tokens = 0
end
local level = {}
local longest, short, full = 0, nil, nil
local behind = ARGV[4] == '1' and held < accounts
for n = 1, accounts do
  local sessions, bucket = KEYS[3 * n - 2], KEYS[3 * n]
  local most, rate = tonumber(ARGV[3 * n + 2]), tonumber(ARGV[3 * n + 4])
  if rate >= 0 then
    local known = redis.call('HMGET', bucket, 'level', 'at')
    local at = tonumber(known[2]) or now
    level[n] = math.min(rate, (tonumber(known[1]) or rate) + math.max(0, now - at) * rate / 60000)
    if level[n] ~= level[n] or level[n] == -math.huge then
      level[n] = rate
    end
    if at > now then
      redis.call('HSET', bucket, 'at', now)
    end
    local lacking = (math.min(tokens, rate) - level[n]) * 60000 / rate
    if tokens > 0 and lacking > longest then
      longest, short = lacking, n
    end
  end
  local others = redis.call('ZCARD', sessions)
  if redis.call('ZSCORE', sessions, id) then
    others = others - 1
  end
  if not full and most >= 0 and others >= most then
    full = n
  end
end
if short then
  return {'TOKENS', short, math.ceil(longest)}
end
if full or behind then
  for n = 1, accounts do
    local most = tonumber(ARGV[3 * n + 3])
    local others = redis.call('ZCARD', KEYS[3 * n - 1])
    if most >= 0 and others >= most then
      return {'FULL', n, others}
    end
  end
  for n = 1, accounts do
    redis.call('ZADD', KEYS[3 * n - 1], now + lease, id)
    redis.call('PEXPIRE', KEYS[3 * n - 1], lease)
  end
  return {'QUEUED', full or accounts}
end
local reply = {'ADMITTED'}
for n = 1, accounts do
  redis.call('ZADD', KEYS[3 * n - 2], now + lease, id)
  redis.call('PEXPIRE', KEYS[3 * n - 2], lease)
  reply[n + 1] = ''
  if level[n] then
    local rate = tonumber(ARGV[3 * n + 4])
    local left = level[n] - tokens
    redis.call('HSET', KEYS[3 * n], 'level', string.format('%.3f', left), 'at', now)
    redis.call('PEXPIRE', KEYS[3 * n], math.ceil((rate - left) * 60000 / rate) + 1000)
    reply[n + 1] = math.floor(left)
  end
end
return reply
