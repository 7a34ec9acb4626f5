-- Replace a proposal if it still is what was read.
-- KEYS: proposals.  ARGV: id, as read, new.  Returns 1 done, 0 it has changed.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
