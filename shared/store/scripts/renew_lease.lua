-- Hold a lease for another period, or give it back. One that ran out is taken again, if nobody claimed it meanwhile.
-- KEYS: lease, hash of what it is on.  ARGV: token, milliseconds (0 releases).
-- Returns 1 if the token was the last that was given.
if redis.call('HGET', KEYS[2], 'owner') ~= ARGV[1] then return 0 end
if ARGV[2] ~= '0' then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
else
  redis.call('DEL', KEYS[1])
  redis.call('HDEL', KEYS[2], 'owner')
end
return 1
