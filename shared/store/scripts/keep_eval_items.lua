-- Keep results of rows, and drafts of results, and count what each adds; whatever is kept already is left out.
-- KEYS: run hash, active runs, items, marks, drafts, tally
-- ARGV: lease token, run id, then for each: row's number, mark or "" for a draft, text, how many counts, and of each
--       its name and what is added
-- Returns 1 done, -1 the run is at its end or gone, -2 somebody else has claimed it.
if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
if is_fenced_off(KEYS[1], ARGV[1]) then return -2 end
if not redis.call('ZSCORE', KEYS[2], ARGV[2]) then return -1 end
local at = 3
while at <= #ARGV do
  local number, mark, text, counts = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  local is_new
  if redis.call('HEXISTS', KEYS[3], number) == 1 then
    is_new = false
  elseif mark == '' then
    is_new = redis.call('HGET', KEYS[5], number) ~= text
    if is_new then redis.call('HSET', KEYS[5], number, text) end
  else
    is_new = true
    redis.call('HSET', KEYS[3], number, text)
    redis.call('HINCRBY', KEYS[1], 'result_bytes', #text)
    redis.call('SETRANGE', KEYS[4], number, mark)
    redis.call('HDEL', KEYS[5], number)
  end
  at = at + 4
  for _ = 1, counts do
    if is_new then redis.call('HINCRBY', KEYS[6], ARGV[at], ARGV[at + 1]) end
    at = at + 2
  end
end
return 1
