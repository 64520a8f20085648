-- Read a session; that renews nothing.
-- KEYS: meta hash, ids string, log-probabilities string.
-- Replies the meta hash (names and values in turn), the ids and their log-probabilities, or "UNKNOWN". Half a record
-- is none.
local ids = redis.call('GET', KEYS[2])
if not ids or redis.call('EXISTS', KEYS[1]) == 0 then
  return 'UNKNOWN'
end
return {redis.call('HGETALL', KEYS[1]), ids, redis.call('GET', KEYS[3]) or ''}
