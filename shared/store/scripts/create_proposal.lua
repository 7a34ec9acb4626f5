-- Keep a proposal of an alias, once, and forget some of the oldest.
-- KEYS: alias, proposals.  ARGV: the alias's uid, id, proposal, then ids to forget.  Returns 1 kept, 0 nobody wants it.
if not is_monitored(KEYS[1], ARGV[1]) then return 0 end
if redis.call('HSETNX', KEYS[2], ARGV[2], ARGV[3]) == 0 then return 0 end
for place = 4, #ARGV do redis.call('HDEL', KEYS[2], ARGV[place]) end
return 1
