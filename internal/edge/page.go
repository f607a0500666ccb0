package edge

import (
	"fmt"
	"math"
	"net/http"
	"strings"
)

// pageCache is the Cache-Control of a page that does not reach the stream's end: it stays
// what it is, but for rows that have a newer version by now.
const pageCache = "public, max-age=60"

// header returns the headers of a page's response in the coding.
func (p Page) header(st Stream, req Request, c coding) header {
	if p.Next == nil {
		return append(headerOf(st, noStore, c), [2]string{"Vary", pageVary})
	}
	h := append(headerOf(st, pageCache, c), [2]string{"Vary", pageVary}, [2]string{"ETag", p.etag(req)})
	// Relative to the request, whatever proxies have made of its path.
	next := fmt.Sprintf("?cursor=%s&follow=0&limit=%d", p.Next, req.Limit)
	if req.Positions > 0 && req.Positions < math.MaxInt {
		next += fmt.Sprintf("&positions=%d", req.Positions)
	}
	if req.Flat {
		next += "&format=flat"
	}
	return append(h, [2]string{"Link", "<" + next + `>; rel="next"`})
}

// pageVary names the request headers on which a page may depend: the form, how it is coded,
// and whether a browser may show it to its page.
const pageVary = "Accept, Accept-Encoding, Origin"

// known says whether the client has the page already.
func (p Page) known(r *http.Request, req Request) bool {
	if p.Next == nil {
		return false
	}
	for tag := range strings.SplitSeq(r.Header.Get("If-None-Match"), ",") {
		if strings.TrimSpace(tag) == p.etag(req) {
			return true
		}
	}
	return false
}

// etag is weak: pages with the same documents may have other bytes, such as position rows.
func (p Page) etag(req Request) string {
	form := "lockstep"
	if req.Flat {
		form = "flat"
	}
	return `W/"` + p.Tag + "-" + form + `"`
}
