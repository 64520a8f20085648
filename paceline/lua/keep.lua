-- Keep a text for a while.
-- KEYS: a string. ARGV: ttl seconds, the text. Replies "OK".
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[1])
return 'OK'
