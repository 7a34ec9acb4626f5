-- Set when requests to a reward model are due again, unless they are answered.
-- KEYS: queue.  ARGV: seconds from now, ids...
local time = redis.call('TIME')
local due = time[1] + time[2] / 1000000 + ARGV[1]
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], 'XX', due, ARGV[i]) end
return 1
