-- Take a sample off those that are due and keep it graded, once; what is kept of another model of the alias goes.
-- When a baseline or a window has as many as it may, a new one takes the place of a random one, or is not kept: so each
-- that was seen is there with the same chance.
-- KEYS: alias, due samples, first samples, latest samples, how many were seen
-- ARGV: the alias's uid, due sample, graded sample or "", revision of its model, "first" if it is of the baseline, else
-- the Unix time at which its window begins, most of one of these, most latest, a random number from 0 to below 1
-- Returns 1 taken, 0 it was not there any more.
if redis.call('LREM', KEYS[2], 1, ARGV[2]) == 0 then return 0 end
if ARGV[3] == '' or not is_monitored(KEYS[1], ARGV[1]) then return 1 end
for place = 3, 4 do
  local head = redis.call('LINDEX', KEYS[place], 0)
  if head and string.format('%.0f', cjson.decode(head)['since']) ~= ARGV[4] then
    redis.call('DEL', KEYS[place], KEYS[5])
  end
end
local is_first, most = ARGV[5] == 'first', tonumber(ARGV[6])
if is_first then redis.call('HSETNX', KEYS[5], 'first', redis.call('LLEN', KEYS[3])) end
local seen = redis.call('HINCRBY', KEYS[5], ARGV[5], 1)
if not is_first and redis.call('HLEN', KEYS[5]) > 8 then
  for _, name in ipairs(redis.call('HKEYS', KEYS[5])) do
    if name ~= 'first' and tonumber(name) < tonumber(ARGV[5]) then redis.call('HDEL', KEYS[5], name) end
  end
end
local list = is_first and KEYS[3] or KEYS[4]
if seen > most then
  local place = math.floor(ARGV[8] * seen)
  if place >= most then return 1 end
  -- A window's are the newest of the list.
  local replaced = redis.call('LINDEX', list, place)
  if replaced then redis.call('LREM', list, 1, replaced) end
end
redis.call(is_first and 'RPUSH' or 'LPUSH', list, ARGV[3])
if not is_first then redis.call('LTRIM', list, 0, ARGV[7] - 1) end
return 1
