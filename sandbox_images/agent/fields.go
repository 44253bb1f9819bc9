package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"
)

// fields is a JSON object read by a closed schema: each field is taken once, by exact name, with its range; what is left over
// is refused. The first mistake is kept and told by finish. (encoding/json's own struct decoding matches names without case.)
type fields struct {
	raw     map[string]json.RawMessage
	mistake error
	halves  bool
}

var errSurrogate = errors.New("text holds half a surrogate pair")

func parseObject(raw []byte) (*fields, error) {
	f := &fields{}
	if err := json.Unmarshal(raw, &f.raw); err != nil {
		return nil, errors.New("not a JSON object")
	}
	if f.raw == nil {
		return nil, errors.New("not a JSON object")
	}
	return f, nil
}

func (f *fields) fail(name, expected string) {
	if f.mistake == nil {
		f.mistake = fmt.Errorf("field %s must be %s", name, expected)
	}
}

// take removes the field; present is false where it is missing.
func (f *fields) take(name string) (raw json.RawMessage, present bool) {
	raw, present = f.raw[name]
	delete(f.raw, name)
	return raw, present
}

func isNull(raw json.RawMessage) bool { return bytes.Equal(bytes.TrimSpace(raw), []byte("null")) }

func (f *fields) decode(name string, raw json.RawMessage, into any, expected string) bool {
	if isNull(raw) || json.Unmarshal(raw, into) != nil {
		f.fail(name, expected)
		return false
	}
	return true
}

func (f *fields) need(name string) json.RawMessage {
	raw, present := f.take(name)
	if !present {
		f.fail(name, "present")
		return json.RawMessage(`""`)
	}
	return raw
}

func (f *fields) string(name string, raw json.RawMessage) (text string) {
	if !f.decode(name, raw, &text, "a string") {
		return ""
	}
	f.halves = f.halves || halfSurrogate(raw, text)
	return text
}

// halfSurrogate tells whether decoding had to replace a lone \ud8xx escape: such text has no UTF-8 form.
func halfSurrogate(raw []byte, text string) bool {
	if !strings.ContainsRune(text, utf8.RuneError) {
		return false
	}
	for at := 0; at+1 < len(raw); at++ {
		if raw[at] != '\\' {
			continue
		}
		at++ // the escaped character, be it a backslash or the u
		if unit := escapedUnit(raw, at-1); unit&0xF800 == 0xD800 {
			if unit >= 0xDC00 || escapedUnit(raw, at+5)&0xFC00 != 0xDC00 {
				return true
			}
			at += 6
		}
	}
	return false
}

// escapedUnit is the UTF-16 unit of a \uXXXX escape at that place, 0 where there is none.
func escapedUnit(raw []byte, at int) uint64 {
	if at+6 > len(raw) || raw[at] != '\\' || raw[at+1] != 'u' {
		return 0
	}
	unit, err := strconv.ParseUint(string(raw[at+2:at+6]), 16, 16)
	if err != nil {
		return 0
	}
	return unit
}

func (f *fields) required(name string) string { return f.string(name, f.need(name)) }

func (f *fields) text(name, missing string) string {
	if raw, present := f.take(name); present {
		return f.string(name, raw)
	}
	return missing
}

// maybe is nil for a missing field and for null.
func (f *fields) maybe(name string) *string {
	raw, present := f.take(name)
	if !present || isNull(raw) {
		return nil
	}
	text := f.string(name, raw)
	return &text
}

func (f *fields) blob(name string, required bool) []byte {
	raw, present := f.take(name)
	if !present {
		if required {
			f.fail(name, "present")
		}
		return nil
	}
	var text string
	if !f.decode(name, raw, &text, "base64") {
		return nil
	}
	data, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		f.fail(name, "base64")
	}
	return data
}

func (f *fields) integer(name string, missing, low, high int64) int64 {
	raw, present := f.take(name)
	if !present {
		return missing
	}
	var value int64
	expected := fmt.Sprintf("an integer from %d to %d", low, high)
	if f.decode(name, raw, &value, expected) && (value < low || value > high) {
		f.fail(name, expected)
	}
	return value
}

func (f *fields) maybeInteger(name string, low, high int64) *int64 {
	raw, present := f.raw[name]
	if !present || isNull(raw) {
		delete(f.raw, name)
		return nil
	}
	value := f.integer(name, low, low, high)
	return &value
}

func (f *fields) seconds(name string, high float64) float64 {
	var value float64
	raw := f.need(name)
	expected := fmt.Sprintf("a number of seconds above 0, at most %g", high)
	if f.decode(name, raw, &value, expected) && (math.IsNaN(value) || value <= 0 || value > high) {
		f.fail(name, expected)
	}
	return value
}

func (f *fields) flag(name string, missing bool) bool {
	raw, present := f.take(name)
	if !present {
		return missing
	}
	value := missing
	f.decode(name, raw, &value, "true or false")
	return value
}

func (f *fields) list(name string, low, high int) []string {
	raw, present := f.take(name)
	if !present {
		raw = json.RawMessage("[]")
	}
	var items []json.RawMessage
	expected := fmt.Sprintf("a list of %d to %d strings", low, high)
	if !f.decode(name, raw, &items, expected) {
		return nil
	}
	if len(items) < low || len(items) > high {
		f.fail(name, expected)
		return nil
	}
	texts := make([]string, len(items))
	for index, item := range items {
		texts[index] = f.string(name, item)
	}
	return texts
}

// table is an object of strings.
func (f *fields) table(name string) map[string]string {
	texts := map[string]string{}
	raw, present := f.take(name)
	if !present {
		return texts
	}
	var items map[string]json.RawMessage
	if !f.decode(name, raw, &items, "an object of strings") {
		return texts
	}
	for key, item := range items {
		if key == "" || strings.ContainsAny(key, "=\x00") {
			f.fail(name, "an object whose names are neither empty nor hold = or NUL")
		}
		texts[key] = f.string(name, item)
	}
	return texts
}

// finish tells the first mistake, an unknown field included.
func (f *fields) finish() error {
	if f.mistake != nil {
		return f.mistake
	}
	if len(f.raw) == 0 {
		return nil
	}
	names := make([]string, 0, len(f.raw))
	for name := range f.raw {
		names = append(names, name)
	}
	sort.Strings(names)
	return fmt.Errorf("unknown field %.64q", names[0])
}
