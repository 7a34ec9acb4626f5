-- Keep what an alias's model was trained on, as far as it is compared.
-- KEYS: alias, training traits.  ARGV: the alias's uid, traits.  Returns 1 kept, 0 nobody wants it.
if not is_monitored(KEYS[1], ARGV[1]) then return 0 end
redis.call('SET', KEYS[2], ARGV[2])
return 1
