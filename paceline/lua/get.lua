-- Read a session; that renews nothing.
-- KEYS: meta hash, ids string.
-- Replies the meta hash (names and values in turn) and the ids, or "UNKNOWN". Half a record is none.
local ids = redis.call('GET', KEYS[2])
if not ids or redis.call('EXISTS', KEYS[1]) == 0 then
  return 'UNKNOWN'
end
return {redis.call('HGETALL', KEYS[1]), ids}
