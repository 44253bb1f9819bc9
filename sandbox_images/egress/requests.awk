# squid's helper: told of each decision before it takes effect. "channel client method host port verdict"; always answers OK.
{
    attempt($2, "requests", $NF, $5, $4)
    print $1, "OK"
    fflush()
}
