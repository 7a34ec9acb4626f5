-- Delete a service account and every key of it.
-- KEYS: service account, service accounts of the project, its keys, keys of the project
-- ARGV: service account id, prefixes of key records, of times of use, of digests by id
-- Returns 1 deleted, 0 there was none.
for _, id in ipairs(redis.call('SMEMBERS', KEYS[3])) do
  local digest = redis.call('GET', ARGV[4] .. id)
  if digest then redis.call('DEL', ARGV[2] .. digest, ARGV[3] .. digest) end
  redis.call('DEL', ARGV[4] .. id)
  redis.call('ZREM', KEYS[4], id)
end
redis.call('DEL', KEYS[3])
redis.call('ZREM', KEYS[2], ARGV[1])
return redis.call('DEL', KEYS[1])
