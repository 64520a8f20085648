-- Forget a kept text.
-- KEYS: a string. Replies "OK".
redis.call('DEL', KEYS[1])
return 'OK'
