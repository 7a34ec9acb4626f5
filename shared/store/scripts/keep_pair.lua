-- Keep what a shadow answered, unless its alias was deleted meanwhile or has no shadow any more.
-- KEYS: alias, shadow pairs.  ARGV: the alias's uid, pair, most pairs, ms of the oldest to keep, seconds to keep all
-- Returns 1 kept, 0 nobody wants it.
local raw = redis.call('GET', KEYS[1])
if not raw then return 0 end
local alias = cjson.decode(raw)
if alias['uid'] ~= ARGV[1] or type(alias['shadow']) ~= 'table' then return 0 end
redis.call('XADD', KEYS[2], 'MAXLEN', ARGV[3], '*', 'pair', ARGV[2])
redis.call('XTRIM', KEYS[2], 'MINID', ARGV[4])
redis.call('EXPIRE', KEYS[2], ARGV[5])
return 1
