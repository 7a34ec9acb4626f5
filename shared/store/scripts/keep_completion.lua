-- Keep a completion and enter it in its project's list; two of the oldest entries are dropped if their records expired.
-- KEYS: completion hash, completions of the project, sequence
-- ARGV: id, seconds to keep or 0, beginnings of the completions' and the places' keys, then field, value, ...
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], unpack(ARGV, 5))
if tonumber(ARGV[2]) > 0 then redis.call('EXPIRE', KEYS[1], ARGV[2]) end
redis.call('ZADD', KEYS[2], redis.call('INCR', KEYS[3]), ARGV[1])
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, 1)) do
  if redis.call('EXISTS', ARGV[3] .. id) == 0 then leave_list(KEYS[2], id, ARGV[4]) end
end
return 1
