-- Add to the counts of a project's day. A hash that has `most` fields takes no new ones; what would be one counts for
-- the model that stands for the rest.
-- KEYS: the day's hash. ARGV: seconds to keep it, most fields, name of the rest; then metric, model, number ...
for i = 4, #ARGV, 3 do
  local field = ARGV[i] .. ' ' .. ARGV[i + 1]
  if redis.call('HEXISTS', KEYS[1], field) == 0 and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[2]) then
    field = ARGV[i] .. ' ' .. ARGV[3]
  end
  redis.call('HINCRBY', KEYS[1], field, ARGV[i + 2])
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
