-- Replace an eval's record if it still is what was read; it is the last changed then.
-- KEYS: record, evals of the project by their last change, sequence.  ARGV: as read, new, id.
-- Returns 1 done, 0 it has changed or is gone.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('ZADD', KEYS[2], redis.call('INCR', KEYS[3]), ARGV[3])
return 1
