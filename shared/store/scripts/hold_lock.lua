-- Take a lock or renew it; 0 milliseconds give it back.
-- KEYS: lock.  ARGV: token, milliseconds.  Returns 0 while somebody else has it, 1 if it was taken or given back, 2 if it
-- was renewed without a break.
local holder = redis.call('GET', KEYS[1])
local is_foreign = holder and holder ~= ARGV[1]
if is_foreign and (ARGV[2] == '0' or is_held(KEYS[1], tonumber(ARGV[2]))) then return 0 end
if ARGV[2] == '0' then return redis.call('DEL', KEYS[1]) end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return holder and 2 or 1
