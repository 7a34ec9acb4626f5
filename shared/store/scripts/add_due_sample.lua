-- Have a sampled answer graded; the oldest beyond the most go.
-- KEYS: alias, due samples.  ARGV: the alias's uid, sample, most.  Returns 1 added, 0 nobody wants it.
if not is_monitored(KEYS[1], ARGV[1]) then return 0 end
redis.call('RPUSH', KEYS[2], ARGV[2])
redis.call('LTRIM', KEYS[2], -ARGV[3], -1)
return 1
