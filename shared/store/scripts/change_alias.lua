-- Replace an alias if it is still the one that was read, and put the change in front of its history. It stays tended as
-- long as a proposal of it is approved and not carried out.
-- KEYS: alias, history, tended aliases, outcomes, proposals, then what goes with its monitor
-- ARGV: record as read, new record, entry, most entries, its name among the tended ones, 1 if it is tended, 1 if what its
-- monitor has noted is of use, the outcome that webhooks are told of or ""
-- Returns 1 done, 0 somebody wrote first.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('LPUSH', KEYS[2], ARGV[3])
redis.call('LTRIM', KEYS[2], 0, ARGV[4] - 1)
local is_tended = ARGV[6] == '1'
for _, raw in ipairs(is_tended and {} or redis.call('HVALS', KEYS[5])) do
  is_tended = is_tended or cjson.decode(raw)['status'] == 'approved'
end
redis.call(is_tended and 'SADD' or 'SREM', KEYS[3], ARGV[5])
if ARGV[7] ~= '1' then redis.call('DEL', unpack(KEYS, 6)) end
if ARGV[8] ~= '' then redis.call('ZADD', KEYS[4], 0, ARGV[8]) end
return 1
