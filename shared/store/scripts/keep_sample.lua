-- Take a sample off those that are due and keep it graded, once; what is kept of another model of the alias goes.
-- KEYS: alias, due samples, first samples, latest samples
-- ARGV: the alias's uid, due sample, graded sample or "", revision of its model, 1 if it is of the baseline, most first,
-- most latest
-- Returns 1 taken, 0 it was not there any more.
if redis.call('LREM', KEYS[2], 1, ARGV[2]) == 0 then return 0 end
if ARGV[3] == '' or not is_monitored(KEYS[1], ARGV[1]) then return 1 end
for place = 3, 4 do
  local head = redis.call('LINDEX', KEYS[place], 0)
  if head and string.format('%.0f', cjson.decode(head)['since']) ~= ARGV[4] then redis.call('DEL', KEYS[place]) end
end
if ARGV[5] == '1' then
  if redis.call('LLEN', KEYS[3]) < tonumber(ARGV[6]) then redis.call('RPUSH', KEYS[3], ARGV[3]) end
else
  redis.call('LPUSH', KEYS[4], ARGV[3])
  redis.call('LTRIM', KEYS[4], 0, ARGV[7] - 1)
end
return 1
