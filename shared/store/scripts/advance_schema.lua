-- Note that a migration is done, if nobody else has meanwhile.
-- KEYS: schema, lock.  ARGV: token of the lock, version before, version now, Unix time.  Returns 1 done, 0 not ours.
if redis.call('GET', KEYS[2]) ~= ARGV[1] or redis.call('HGET', KEYS[1], 'version') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[3], 'applied ' .. ARGV[3], ARGV[4])
return 1
