-- Keep a completion and enter it in its project's list; two of the oldest entries are dropped if their records expired.
-- KEYS: completion hash, completions of the project, sequence, stored answers of the project, bytes of the project
-- ARGV: id, seconds to keep or 0, beginnings of the completions' and the places' keys, then field, value, ...
keep_answer(KEYS[1], KEYS[4], KEYS[5], ARGV[1], ARGV[2], {unpack(ARGV, 5)})
redis.call('ZADD', KEYS[2], redis.call('INCR', KEYS[3]), ARGV[1])
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, 1)) do
  if redis.call('EXISTS', ARGV[3] .. id) == 0 then leave_list(KEYS[2], id, ARGV[4]) end
end
return 1
