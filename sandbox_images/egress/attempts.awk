# Who asked for what, one file per client and kind: "count verdict port host", tab between. The last line of a key has its count.
# A client cannot displace another's lines, nor fill the disk: so many keys each, and a line only while the count is small or doubles.
# The host makes the files and removes them with the box; what cannot be written then is nobody's.
BEGIN { KEYS = 200; EACH = 16; SWEEP = 5000; PROCINFO["NONFATAL"] = 1 }

function attempt(client, kind, verdict, port, host,    key, count) {
    if (client !~ /^[0-9.]+$/) return
    if (++lines % SWEEP == 0) forget()
    host = tolower(substr(host, 1, 255))
    gsub(/[^a-z0-9_.:%*\[\]-]/, "?", host)
    key = verdict "\t" port "\t" host
    if (!((client, kind, key) in counts)) {
        if (keys[client, kind] >= KEYS) key = "more\t0\t"
        else keys[client, kind]++
    }
    count = ++counts[client, kind, key]
    if (count > EACH && and(count, count - 1)) return
    file = dir "/" client "." kind
    print count "\t" key >>file
    close(file)
}

# The host removes a client's files when its box is gone.
function forget(    entry, parts, file, line) {
    for (entry in keys) {
        split(entry, parts, SUBSEP)
        file = dir "/" parts[1] "." parts[2]
        if ((getline line <file) < 0) gone[parts[1], parts[2]]
        close(file)
    }
    for (entry in counts) {
        split(entry, parts, SUBSEP)
        if ((parts[1], parts[2]) in gone) delete counts[entry]
    }
    for (entry in gone) delete keys[entry]
    delete gone
}
