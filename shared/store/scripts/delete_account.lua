-- Delete a service account and every key of it.
-- KEYS: service account, service accounts of the project, its keys, keys of the project
-- ARGV: service account id, prefixes of key records, of times of use, of former values, of digests by id,
--       beginnings of the places' keys of the project's service accounts and of its keys
-- Returns 1 deleted, 0 there was none.
for _, id in ipairs(redis.call('SMEMBERS', KEYS[3])) do
  local digest = redis.call('GET', ARGV[5] .. id)
  if digest then retire_key(digest, id, '0', ARGV[2], ARGV[3], ARGV[4]) end
  redis.call('DEL', ARGV[5] .. id)
  leave_list(KEYS[4], id, ARGV[7])
end
redis.call('DEL', KEYS[3])
leave_list(KEYS[2], ARGV[1], ARGV[6])
return redis.call('DEL', KEYS[1])
