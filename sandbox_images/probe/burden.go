package main

import (
	"bytes"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"
)

const (
	mib       = 1 << 20
	hugePage  = 15 // MADV_NOHUGEPAGE: what is touched is what is used
	ipcCreate = 0o1000
)

func exchange(from, to string) error {
	source, err := syscall.BytePtrFromString(from)
	if err != nil {
		return err
	}
	target, err := syscall.BytePtrFromString(to)
	if err != nil {
		return err
	}
	_, _, errno := syscall.Syscall6(sysRenameat2, atFdcwd, uintptr(unsafe.Pointer(source)), atFdcwd,
		uintptr(unsafe.Pointer(target)), renameExchange, 0)
	return asError(errno)
}

// children forks up to `count`; fewer where the box allows no more.
func children(count int, fork func() (uintptr, syscall.Errno)) (pids []int) {
	for range count {
		pid, errno := fork()
		if errno != 0 {
			break
		}
		pids = append(pids, int(pid))
	}
	return pids
}

// forks prints how many sleeping children could be had at once.
func forks(arguments []string) error {
	count, err := number(arguments[0])
	if err != nil {
		return err
	}
	over(20 * time.Second)
	pids := children(count, forkSleeper)
	reap(pids)
	say(len(pids))
	return nil
}

func bomb(arguments []string) error {
	span, err := seconds(arguments[0])
	if err != nil {
		return err
	}
	armed()
	over(span)
	forkBomb()
	return nil
}

func reserve(count int) error {
	found, err := syscall.Mmap(-1, 0, count*mib, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return err
	}
	region = found
	_ = syscall.Madvise(region, hugePage) // a kernel without huge pages has nothing to refuse
	return nil
}

// hog prints how many MiB it holds, each page touched.
func hog(arguments []string) error {
	count, err := number(arguments[0])
	if err != nil {
		return err
	}
	if err := reserve(count); err != nil {
		return err
	}
	armed()
	for offset := 0; offset < len(region); offset += pageBytes {
		region[offset] = 1
	}
	say(count)
	return nil
}

// hogs starts that many children which take so many MiB each, and have made themselves as hard to choose for the kernel as they may.
func hogs(arguments []string) error {
	count, err := number(arguments[0])
	if err != nil {
		return err
	}
	size, err := number(arguments[1])
	if err != nil {
		return err
	}
	if err := reserve(size); err != nil {
		return err
	}
	for _, score := range []string{"-1000", "0"} {
		err = os.WriteFile("/proc/self/oom_score_adj", []byte(score), 0)
		say("oom_score_adj", score, outcome(err))
	}
	armed()
	over(2 * time.Second)
	reapLater(children(count, forkHog))
	return nil
}

func reapLater(pids []int) {
	for _, pid := range pids {
		for {
			if _, err := syscall.Wait4(pid, nil, 0, nil); err != syscall.EINTR {
				break
			}
		}
	}
}

// spin prints the processor seconds that so many spinning children got in that many seconds.
func spin(arguments []string) error {
	count, err := number(arguments[0])
	if err != nil {
		return err
	}
	span, err := seconds(arguments[1])
	if err != nil {
		return err
	}
	armed()
	over(span)
	reapLater(children(count, forkSpinner))
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_CHILDREN, &used); err != nil {
		return err
	}
	say(fmt.Sprintf("%.3f", time.Duration(used.Utime.Nano()+used.Stime.Nano()).Seconds()))
	return nil
}

// inodes makes up to that many empty files here; prints how many, and why it stopped.
func inodes(arguments []string) error {
	count, err := number(arguments[0])
	if err != nil {
		return err
	}
	made := 0
	for ; made < count; made++ {
		file, failure := os.OpenFile(fmt.Sprintf("i%d", made), os.O_CREATE|os.O_WRONLY, 0o644)
		if err = failure; err != nil {
			break
		}
		file.Close()
	}
	say(made, outcome(err))
	return nil
}

// fill writes up to so many MiB into one file; prints how many, and why it stopped.
func fill(arguments []string) error {
	count, err := number(arguments[1])
	if err != nil {
		return err
	}
	file, err := os.Create(arguments[0])
	if err != nil {
		return err
	}
	defer file.Close()
	block, done := bytes.Repeat([]byte{'x'}, mib), 0
	for ; done < count; done++ {
		if _, err = file.Write(block); err != nil {
			break
		}
	}
	say(done, outcome(err))
	return nil
}

// flood writes that many bytes to standard output as fast as they are taken.
func flood(arguments []string) error {
	left, err := number(arguments[0])
	if err != nil {
		return err
	}
	block := bytes.Repeat([]byte("flood\n"), 1<<13)
	for left > 0 {
		size := min(left, len(block))
		if _, err := os.Stdout.Write(block[:size]); err != nil {
			return err
		}
		left -= size
	}
	return nil
}

// daemon leaves a process behind that writes to FILE while it lives, and ends.
func daemon(arguments []string, runs bool) error {
	span, err := seconds(arguments[1])
	if err != nil {
		return err
	}
	file, err := os.OpenFile(arguments[0], os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	over(span)
	pid, errno := forkDaemon(file.Fd(), runs)
	if errno != 0 {
		return errno
	}
	reapLater([]int{int(pid)})
	return nil
}

func deaf(arguments []string) error   { return daemon(arguments, false) }
func runner(arguments []string) error { return daemon(arguments, true) }

// zombies keeps that many dead children unburied until it is killed itself.
func zombies(arguments []string) error {
	count, err := number(arguments[0])
	if err != nil {
		return err
	}
	say(len(children(count, func() (uintptr, syscall.Errno) { return forkQuitter(false) })))
	armed()
	over(20 * time.Second)
	rawSleep()
	return nil
}

// orphans leaves that many grandchildren behind that end a little later: their burial is the box's.
func orphans(arguments []string) error {
	count, err := number(arguments[0])
	if err != nil {
		return err
	}
	pids := children(count, func() (uintptr, syscall.Errno) { return forkQuitter(true) })
	reapLater(pids)
	say(len(pids))
	return nil
}

// shared makes or looks for System V memory, POSIX memory and a message queue by name: KIND and made, seen or an error's name.
func shared(arguments []string) error {
	name := arguments[1]
	key := uintptr(0)
	for _, letter := range []byte(name) {
		key = (key*31 + uintptr(letter)) & 0x7fffffff
	}
	makes := arguments[0] == "make"
	flags, open, queue := uintptr(0), os.O_RDWR, uintptr(os.O_RDWR)
	if makes {
		flags, open, queue = ipcCreate|0o666, os.O_RDWR|os.O_CREATE, uintptr(os.O_RDWR|os.O_CREATE)
	}
	_, _, errno := syscall.Syscall(sysShmget, key, pageBytes, flags)
	say("sysv", outcome(asError(errno)))
	file, err := os.OpenFile("/dev/shm/"+name, open, 0o666)
	if err == nil {
		file.Close()
	}
	say("posix", outcome(err))
	text, err := syscall.BytePtrFromString(name)
	if err != nil {
		return err
	}
	fd, _, errno := syscall.Syscall6(sysMqOpen, uintptr(unsafe.Pointer(text)), queue, 0o666, 0, 0, 0)
	if errno == 0 {
		syscall.Close(int(fd))
	}
	say("queue", outcome(asError(errno)))
	return nil
}
