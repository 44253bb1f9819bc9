# dnsmasq's log (log-queries=extra): "dnsmasq[pid]: serial client/port query[TYPE] name from client". The client is named before any hostile text.
{
    at = index($0, ": ")
    line = substr($0, at + 2)
    split(line, words, " ")
    if (words[3] !~ /^query\[/) {
        if (words[1] !~ /^[0-9]+$/) print > "/dev/stderr"
        next
    }
    split(words[2], client, "/")
    name = substr(line, index(line, words[3]) + length(words[3]) + 1)
    sub(/ from [0-9.]+$/, "", name)
    attempt(client[1], "queries", "asked", 53, name)
}
