-- Tell whether anybody holds a lease.  KEYS: lease.  ARGV: milliseconds of a lease.  Returns 1 or 0.
return is_held(KEYS[1], tonumber(ARGV[1])) and 1 or 0
