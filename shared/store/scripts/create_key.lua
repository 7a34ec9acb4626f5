-- Store a key with its indices, if the service account that is to own it exists.
-- KEYS: key record, digest by id, list that it belongs to, sequence, service account, keys of the service account
-- ARGV: key id, record, digest, "1" if a service account owns it
-- Returns 1 created, 0 the service account is gone.
if ARGV[4] == '1' then
  if redis.call('EXISTS', KEYS[5]) == 0 then return 0 end
  redis.call('SADD', KEYS[6], ARGV[1])
end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('SET', KEYS[2], ARGV[3])
redis.call('ZADD', KEYS[3], redis.call('INCR', KEYS[4]), ARGV[1])
return 1
