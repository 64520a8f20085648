// Grafana k6: k6 run -e BASE_URL=... -e MODEL=... k6.js
import { check } from "k6";
import http from "k6/http";

export const options = {
  vus: 2,
  iterations: 8,
  thresholds: { checks: ["rate==1"], http_req_failed: ["rate==0"] },
};

export default function () {
  const body = JSON.stringify({
    model: __ENV.MODEL,
    messages: [{ role: "user", content: "hello world" }],
    max_tokens: 24,
    stream: __ITER % 2 === 1,
  });
  const answer = http.post(`${__ENV.BASE_URL}/chat/completions`, body, {
    headers: { "Content-Type": "application/json" },
  });
  check(answer, {
    served: (it) => it.status === 200,
    whole: (it) => it.body.trim().endsWith("[DONE]") || it.json("choices.0.message.content") !== "",
  });
}
