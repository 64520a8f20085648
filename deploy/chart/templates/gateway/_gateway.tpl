{{- define "paceline.gatewayEnv" -}}
{{- $settings := dict "httpPort" .values.ports.http -}}
{{- if or .values.apiKeys.existingSecret .values.apiKeys.entries -}}
{{- $_ := set $settings "apiKeysFile" (printf "/etc/paceline/api-keys/%s" (ternary .values.apiKeys.key "keys.json" (ne .values.apiKeys.existingSecret ""))) -}}
{{- end -}}
{{- if .root.Values.tls.public.enabled -}}
{{- $_ := set $settings "publicTlsCert" "/etc/paceline/public-tls/tls.crt" -}}
{{- $_ := set $settings "publicTlsKey" "/etc/paceline/public-tls/tls.key" -}}
{{- end -}}
{{- if include "paceline.scaled" .root }}{{ $_ := set $settings "scalerPort" .root.Values.autoscaling.keda.scalerPort }}{{ end -}}
{{- include "paceline.commonSettings" . }}
{{- include "paceline.settings" (dict "service" "gateway" "settings" $settings) }}
{{- include "paceline.discoverySettings" . }}
{{- include "paceline.modelSettings" . }}
{{- include "paceline.redisSettings" . }}
{{- end -}}

{{- define "paceline.discoverySettings" -}}
{{- $discovery := .values.discovery -}}
{{- $settings := dict "discovery" $discovery.mode -}}
{{- if eq $discovery.mode "kubernetes" -}}
{{- $_ := set $settings "kubernetesNamespace" .root.Release.Namespace -}}
{{- $_ := set $settings "kubernetesSelector" (printf "app.kubernetes.io/instance=%s" .root.Release.Name) -}}
{{- else -}}
{{- range $kind := list "verifier" "drafter" -}}
{{- $addresses := index $discovery (printf "%ss" $kind) -}}
{{- if and (eq $discovery.mode "dns") (not $addresses) -}}
{{- range $pool, $values := include "paceline.pools" (dict "root" $.root "kind" $kind) | fromYaml -}}
{{- $service := include "paceline.objectName" (dict "root" $.root "component" $kind "pool" $pool) -}}
{{- $addresses = append $addresses (printf "%s.%s.svc:%v" $service $.root.Release.Namespace (int $values.ports.grpc)) -}}
{{- end -}}
{{- end -}}
{{- $_ := set $settings (printf "%ss" $kind) (join "," $addresses) -}}
{{- end -}}
{{- end -}}
{{- include "paceline.settings" (dict "service" "gateway" "settings" $settings) }}
{{- end -}}

{{/* Certificates and keys of a gateway. */}}
{{- define "paceline.gatewaySecretMounts" -}}
{{- include "paceline.certificateMounts" . }}
{{- if or .values.apiKeys.existingSecret .values.apiKeys.entries }}
- {name: api-keys, mountPath: /etc/paceline/api-keys, readOnly: true}
{{- end }}
{{- end -}}

{{- define "paceline.gatewaySecretVolumes" -}}
{{- include "paceline.certificateVolumes" . }}
{{- if or .values.apiKeys.existingSecret .values.apiKeys.entries }}
- name: api-keys
  secret: {secretName: {{ default (include "paceline.objectName" (dict "root" .root "component" "api-keys")) .values.apiKeys.existingSecret }}, defaultMode: 0440}
{{- end }}
{{- end -}}

{{- define "paceline.gatewayProbes" -}}
{{- $scheme := ternary "HTTPS" "HTTP" .root.Values.tls.public.enabled -}}
{{- $alive := printf "httpGet: {path: /healthz, port: %v, scheme: %s}" (int .values.ports.http) $scheme -}}
{{- $ready := printf "httpGet: {path: /readyz, port: %v, scheme: %s}" (int .values.ports.http) $scheme -}}
{{- include "paceline.probes" (dict "values" .values "startup" $alive "live" $alive "ready" $ready) -}}
{{- end -}}

{{- define "paceline.internalService" -}}
{{ include "paceline.objectName" (dict "root" . "component" "gateway") }}-internal
{{- end -}}

{{- define "paceline.scalerHost" -}}
{{ include "paceline.internalService" . }}.{{ .Release.Namespace }}.svc
{{- end -}}

{{/* Whether anything asks the gateways' external scaler; empty where nothing does. */}}
{{- define "paceline.scaled" -}}
{{- if has "keda" (list .Values.autoscaling.verifiers.mode .Values.autoscaling.drafters.mode) }}yes{{ end -}}
{{- end -}}
