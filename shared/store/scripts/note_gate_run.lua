-- Note what an alias's gate saw of a model, unless the alias was deleted meanwhile.
-- KEYS: alias, gate runs.  ARGV: the alias's uid, model, run, then models to forget.  Returns 1 noted, 0 nobody wants it.
local raw = redis.call('GET', KEYS[1])
if not raw or cjson.decode(raw)['uid'] ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
for place = 4, #ARGV do redis.call('HDEL', KEYS[2], ARGV[place]) end
return 1
