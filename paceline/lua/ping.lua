-- Write something that is gone at once. KEYS: a key of its own. Replies "OK".
return redis.call('SET', KEYS[1], '', 'PX', 1)
