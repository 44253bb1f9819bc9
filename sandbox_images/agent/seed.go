package main

import (
	"archive/tar"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const maxSeedBody = 4 << 30

// imageSeeds is where a task's image holds its repository; nothing else of an image can be asked for as a seed.
const imageSeeds = "/tiltyard/seed"

// putSeed unpacks a stream into the workspace before anybody has the box: links may be in it, since no command can be there to have made
// others.
func (a *agent) putSeed(w http.ResponseWriter, r *http.Request) error {
	if err := a.alive(); err != nil {
		return err
	}
	if asked := r.URL.Query().Get("path"); asked != "" && asked != "." {
		return badRequest("a seed is the workspace's: path is .")
	}
	if r.ContentLength > maxSeedBody {
		return tooLarge(maxSeedBody)
	}
	if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(streamTimeout)); err != nil {
		return err
	}
	source, err := seedSource(w, r)
	if err != nil {
		return err
	}
	defer source.Close()
	done, err := a.unpackSeed(source)
	if err != nil {
		return tarError(".", err)
	}
	reply(w, http.StatusOK, done)
	return nil
}

// unpackSeed is over, for whoever wants the lease, before the reply tells so.
func (a *agent) unpackSeed(body io.Reader) (done putReply, err error) {
	if refused := a.registry.beginSeed(); refused != nil {
		return done, refused
	}
	defer a.registry.endSeed()
	a.trimmer.begin()
	defer a.trimmer.end()
	where, failure := a.paths.locate(".", true)
	if failure != nil {
		return done, failure
	}
	a.crew.as(a.config.UID(0), func() { done, err = unpackTar(where, body, true) })
	return done, err
}

// folderAsTar streams a folder of the image, which is read-only and older than every command, in the form that unpackTar takes.
func folderAsTar(folder string) io.ReadCloser {
	reader, writer := io.Pipe()
	go func() {
		archive := tar.NewWriter(writer)
		err := filepath.WalkDir(folder, func(name string, entry fs.DirEntry, err error) error {
			if err != nil || name == folder {
				return err
			}
			return addToTar(archive, strings.TrimPrefix(name, folder+"/"), name, entry)
		})
		if err == nil {
			err = archive.Close()
		}
		writer.CloseWithError(err)
	}()
	return reader
}

func addToTar(archive *tar.Writer, inside, name string, entry fs.DirEntry) error {
	info, err := entry.Info()
	if err != nil {
		return err
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(name); err != nil {
			return err
		}
	}
	head, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	head.Name, head.Format = inside, tar.FormatPAX
	head.Uname, head.Gname = "", ""
	if err := archive.WriteHeader(head); err != nil || !info.Mode().IsRegular() {
		return err
	}
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.Copy(archive, file)
	return err
}

// seedSource is the request's body, or the image's own folder.
func seedSource(w http.ResponseWriter, r *http.Request) (io.ReadCloser, error) {
	switch from := r.URL.Query().Get("from"); from {
	case "":
		return http.MaxBytesReader(w, r.Body, maxSeedBody), nil
	case "image":
		if info, err := os.Lstat(imageSeeds); err != nil || !info.IsDir() {
			return nil, badRequest("the box's image holds no repository at %s", imageSeeds)
		}
		return folderAsTar(imageSeeds), nil
	default:
		return nil, badRequest("a seed comes from the body, or from=image")
	}
}
