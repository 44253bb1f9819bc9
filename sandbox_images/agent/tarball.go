package main

import "net/http"

func (a *agent) putTar(w http.ResponseWriter, r *http.Request) error    { return nil }
func (a *agent) getTar(w http.ResponseWriter, r *http.Request) error    { return nil }
func (a *agent) postDelta(w http.ResponseWriter, r *http.Request) error { return nil }
