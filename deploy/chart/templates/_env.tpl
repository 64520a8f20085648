{{/* One environment variable for each of `settings`, (dict "service" "settings"); those that are empty are left out. */}}
{{- define "paceline.settings" -}}
{{- range $name, $value := .settings }}
{{- if not (or (kindIs "invalid" $value) (and (kindIs "string" $value) (eq $value ""))) }}
- name: PACELINE_{{ upper $.service }}_{{ snakecase $name | upper }}
  value: {{ include "paceline.scalar" $value | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* What every service of the fleet is told: (dict "root" "component" "pool" "values"). */}}
{{- define "paceline.commonSettings" -}}
{{- $settings := dict "host" .root.Values.listenAddress "metricsPort" .values.ports.metrics "port" .values.ports.grpc -}}
{{- if .root.Values.tls.services.enabled -}}
{{- $_ := set $settings "tlsCert" "/etc/paceline/tls/tls.crt" -}}
{{- $_ := set $settings "tlsKey" "/etc/paceline/tls/tls.key" -}}
{{- $_ := set $settings "tlsCa" "/etc/paceline/tls/ca.crt" -}}
{{- end -}}
{{- with .pool }}{{ $_ := set $settings "pool" . }}{{ end -}}
{{- $settings = mustMergeOverwrite (deepCopy .root.Values.settings) .values.settings $settings -}}
{{- include "paceline.settings" (dict "service" .component "settings" $settings) -}}
{{- end -}}

{{/* The model, for gateways and verifiers. */}}
{{- define "paceline.modelSettings" -}}
{{- $model := .root.Values.model -}}
{{- $settings := dict "model" $model.source "modelName" (include "paceline.modelName" .root) "trustRemoteCode" $model.trustRemoteCode -}}
{{- include "paceline.settings" (dict "service" .component "settings" $settings) }}
{{- include "paceline.modelCacheEnv" .root }}
{{- end -}}

{{/* Where models are looked for and kept. */}}
{{- define "paceline.modelCacheEnv" }}
{{- $model := .Values.model }}
- name: PACELINE_CACHE
  value: {{ $model.cache.mountPath }}
- name: HF_HOME
  value: {{ $model.cache.mountPath }}/huggingface
{{- if $model.cache.readOnly }}
- name: HF_HUB_OFFLINE
  value: "1"
{{- end }}
{{- with $model.hubToken.existingSecret }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: {{ $model.hubToken.key }}}
{{- end }}
{{- end -}}

{{/* Where compilers keep what they made. */}}
{{- define "paceline.kernelEnv" }}
{{- range $variable, $folder := dict "NUMBA_CACHE_DIR" "numba" "TORCHINDUCTOR_CACHE_DIR" "inductor" "TRITON_CACHE_DIR" "triton" }}
- name: {{ $variable }}
  value: /var/cache/paceline/kernels/{{ $folder }}
{{- end }}
{{- end -}}

{{/* The session store, for gateways and verifiers. */}}
{{- define "paceline.redisSettings" -}}
{{- $redis := .root.Values.redis -}}
{{- $external := $redis.external -}}
{{- $settings := dict "durability" $redis.durability "sessionTtlSeconds" $redis.sessionTtlSeconds -}}
{{- include "paceline.settings" (dict "service" .component "settings" $settings) }}
{{- $variable := printf "PACELINE_%s_REDIS_URL" (upper .component) }}
{{- if eq $redis.mode "internal" }}
- name: {{ $variable }}
  valueFrom:
    secretKeyRef: {name: {{ include "paceline.redisSecret" .root }}, key: url}
{{- else if eq $redis.mode "external" }}
{{- if $external.urlKey }}
- name: {{ $variable }}
  valueFrom:
    secretKeyRef: {name: {{ $external.existingSecret }}, key: {{ $external.urlKey }}}
{{- else }}
{{- $credentials := list }}
{{- if $external.existingSecret }}
{{- $credentials = list (list "REDIS_USERNAME" $external.usernameKey) (list "REDIS_PASSWORD" $external.passwordKey) (list "SENTINEL_USERNAME" $external.sentinelUsernameKey) (list "SENTINEL_PASSWORD" $external.sentinelPasswordKey) }}
{{- end }}
{{- range $credentials }}
{{- if last . }}
- name: {{ first . }}
  valueFrom:
    secretKeyRef: {name: {{ $external.existingSecret }}, key: {{ last . }}}
{{- end }}
{{- end }}
- name: {{ $variable }}
  value: {{ include "paceline.externalRedisUrl" $external | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* URL of an external Redis: Kubernetes puts the credentials' variables, which stand before it, in. */}}
{{- define "paceline.externalRedisUrl" -}}
{{- $parts := splitn "://" 2 .url -}}
{{- $user := "" -}}
{{- $options := list -}}
{{- if .existingSecret -}}
{{- $name := ternary "$(REDIS_USERNAME)" "" (ne .usernameKey "") -}}
{{- $password := ternary ":$(REDIS_PASSWORD)" "" (ne .passwordKey "") -}}
{{- if or $name $password }}{{ $user = printf "%s%s@" $name $password }}{{ end -}}
{{- if .sentinelUsernameKey }}{{ $options = append $options "sentinel_username=$(SENTINEL_USERNAME)" }}{{ end -}}
{{- if .sentinelPasswordKey }}{{ $options = append $options "sentinel_password=$(SENTINEL_PASSWORD)" }}{{ end -}}
{{- end -}}
{{- if .tls.existingSecret -}}
{{- $options = append $options "ssl_ca_certs=/etc/paceline/redis-tls/ca.crt" -}}
{{- if .tls.clientCertificate -}}
{{- $options = append $options "ssl_certfile=/etc/paceline/redis-tls/tls.crt" -}}
{{- $options = append $options "ssl_keyfile=/etc/paceline/redis-tls/tls.key" -}}
{{- end -}}
{{- end -}}
{{- $query := "" -}}
{{- if $options }}{{ $query = printf "%s%s" (ternary "&" "?" (contains "?" .url)) (join "&" $options) }}{{ end -}}
{{- printf "%s://%s%s%s" $parts._0 $user $parts._1 $query -}}
{{- end -}}

{{- define "paceline.redisSecret" -}}
{{- default (include "paceline.objectName" (dict "root" . "component" "redis")) .Values.redis.internal.existingSecret -}}
{{- end -}}
