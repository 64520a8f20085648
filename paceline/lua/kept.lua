-- Read a kept text; that renews nothing.
-- KEYS: a string. Replies the text, or nil.
return redis.call('GET', KEYS[1])
