package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// domainName matches the names that a JetStream domain may have: one token of a subject.
var domainName = regexp.MustCompile(`^[^\s.*>]+$`)

// CheckDomain returns an error if no JetStream domain can have the name. An empty one
// stands for that of the server which the connection is to.
func CheckDomain(domain string) error {
	if domain != "" && !domainName.MatchString(domain) {
		return fmt.Errorf("%q is no name of a JetStream domain: it has a space, or one of . * >", domain)
	}
	return nil
}

// JetStream returns the JetStream of the domain: see CheckDomain.
func JetStream(nc *nats.Conn, domain string, opts ...jetstream.JetStreamOpt) (js jetstream.JetStream, err error) {
	if domain == "" {
		js, err = jetstream.New(nc, opts...)
	} else {
		js, err = jetstream.NewWithDomain(nc, domain, opts...)
	}
	if err != nil {
		return nil, fmt.Errorf("open JetStream: %w", err)
	}
	return js, nil
}

// apiPrefix is what begins the subjects of requests that the client library has no call
// for (NATS ADR-1, JetStream domains).
func apiPrefix(js jetstream.JetStream) string {
	if domain := js.Options().Domain; domain != "" {
		return "$JS." + domain + ".API."
	}
	return jetstream.DefaultAPIPrefix
}

// LeaseSubject returns the subject of a key of the bucket (NATS ADR-8, key-value stores).
// Between two domains only requests to JetStream pass.
func LeaseSubject(js jetstream.JetStream, bucket, key string) string {
	subject := "$KV." + bucket + "." + key
	if js.Options().Domain != "" {
		return apiPrefix(js) + subject
	}
	return subject
}

// Last returns the newest message of the subject, which may have wildcards. It asks
// the stream's leader, because a replica that lags may answer a direct get. It
// returns jetstream.ErrMsgNotFound if there is no message.
func Last(ctx context.Context, js jetstream.JetStream, streamName, subject string) (*nats.Msg, uint64, error) {
	req, err := json.Marshal(map[string]string{"last_by_subj": subject})
	if err != nil {
		return nil, 0, fmt.Errorf("encode get of %s: %w", subject, err)
	}
	return leaderGet(ctx, js, streamName, req)
}

// FirstFrom returns the first message of the subject at or after seq, as the
// stream's leader has it. It returns jetstream.ErrMsgNotFound if there is none.
func FirstFrom(ctx context.Context, js jetstream.JetStream, streamName, subject string, seq uint64) (*nats.Msg, uint64, error) {
	req, err := json.Marshal(struct {
		Seq  uint64 `json:"seq"`
		Next string `json:"next_by_subj"`
	}{seq, subject})
	if err != nil {
		return nil, 0, fmt.Errorf("encode get of %s: %w", subject, err)
	}
	return leaderGet(ctx, js, streamName, req)
}

func leaderGet(ctx context.Context, js jetstream.JetStream, streamName string, req []byte) (*nats.Msg, uint64, error) {
	resp, err := js.Conn().RequestWithContext(ctx, apiPrefix(js)+"STREAM.MSG.GET."+streamName, req)
	if err != nil {
		return nil, 0, fmt.Errorf("get message of stream %s: %w", streamName, err)
	}
	var body struct {
		Error   *jetstream.APIError `json:"error"`
		Message *struct {
			Subject string `json:"subject"`
			Seq     uint64 `json:"seq"`
			Header  []byte `json:"hdrs"`
			Data    []byte `json:"data"`
		} `json:"message"`
	}
	if err := json.Unmarshal(resp.Data, &body); err != nil {
		return nil, 0, fmt.Errorf("get message of stream %s: %w", streamName, err)
	}
	switch {
	case body.Error != nil && body.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return nil, 0, jetstream.ErrMsgNotFound
	case body.Error != nil && body.Error.ErrorCode == jetstream.JSErrCodeStreamNotFound:
		return nil, 0, jetstream.ErrStreamNotFound
	case body.Error != nil:
		return nil, 0, fmt.Errorf("get message of stream %s: %w", streamName, body.Error)
	case body.Message == nil:
		return nil, 0, fmt.Errorf("get message of stream %s: %w", streamName, errors.New("the answer has no message"))
	}
	msg := &nats.Msg{Subject: body.Message.Subject, Data: body.Message.Data, Header: nats.Header{}}
	if len(body.Message.Header) > 0 {
		if msg.Header, err = nats.DecodeHeadersMsg(body.Message.Header); err != nil {
			return nil, 0, fmt.Errorf("parse headers of message %d of stream %s: %w", body.Message.Seq, streamName, err)
		}
	}
	return msg, body.Message.Seq, nil
}
