-- Give a database its identity, unless it has one.
-- KEYS: schema.  ARGV: id, version, Unix time.  Returns id and version.
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('HSET', KEYS[1], 'id', ARGV[1], 'version', ARGV[2], 'applied ' .. ARGV[2], ARGV[3])
end
return redis.call('HMGET', KEYS[1], 'id', 'version')
