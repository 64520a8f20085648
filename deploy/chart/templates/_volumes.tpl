{{/* The model cache, (dict "root" "shared"): the fleet's volume, or one of the pod's own. */}}
{{- define "paceline.modelVolume" -}}
{{- $cache := .root.Values.model.cache -}}
- name: models
  {{- if or (not .shared) (eq $cache.type "emptyDir") }}
  emptyDir:
    {{- if $cache.sizeLimit }}
    sizeLimit: {{ $cache.sizeLimit }}
    {{- else }}
    {}
    {{- end }}
  {{- else if eq $cache.type "hostPath" }}
  hostPath: {path: {{ $cache.hostPath }}, type: DirectoryOrCreate}
  {{- else }}
  persistentVolumeClaim:
    claimName: {{ include "paceline.modelClaim" .root }}
    readOnly: {{ $cache.readOnly }}
  {{- end }}
{{- end -}}

{{- define "paceline.modelClaim" -}}
{{- default (include "paceline.objectName" (dict "root" . "component" "models")) .Values.model.cache.persistentVolumeClaim.existingClaim -}}
{{- end -}}

{{- define "paceline.modelMount" -}}
- name: models
  mountPath: {{ .root.Values.model.cache.mountPath }}
  {{- if and .shared .root.Values.model.cache.readOnly }}
  readOnly: true
  {{- end }}
{{- end -}}

{{- define "paceline.kernelVolume" -}}
- name: kernels
  {{- if .hostPath }}
  hostPath: {path: {{ .hostPath }}, type: DirectoryOrCreate}
  {{- else }}
  emptyDir: {sizeLimit: {{ .sizeLimit }}}
  {{- end }}
{{- end -}}

{{/* What drafters draft with, `weights` of a pool; empty without such a volume. */}}
{{- define "paceline.weightsVolume" -}}
{{- if eq .type "persistentVolumeClaim" -}}
- name: weights
  persistentVolumeClaim: {claimName: {{ .existingClaim }}, readOnly: true}
{{- else if eq .type "hostPath" -}}
- name: weights
  hostPath: {path: {{ .hostPath }}, type: Directory}
{{- end -}}
{{- end -}}

{{/* Volumes of certificates and of Redis' CA, (dict "root" "component"). */}}
{{- define "paceline.certificateVolumes" -}}
{{- $tls := .root.Values.tls -}}
{{- if $tls.services.enabled }}
- name: tls
  secret: {secretName: {{ include "paceline.serviceTlsSecret" . }}, defaultMode: 0440}
{{- end }}
{{- if and $tls.public.enabled (eq .component "gateway") }}
- name: public-tls
  secret: {secretName: {{ include "paceline.publicTlsSecret" .root }}, defaultMode: 0440}
{{- end }}
{{- if and (include "paceline.redisTlsSecret" .root) (ne .component "drafter") }}
- name: redis-tls
  secret: {secretName: {{ include "paceline.redisTlsSecret" .root }}, defaultMode: 0440}
{{- end }}
{{- end -}}

{{- define "paceline.certificateMounts" -}}
{{- range include "paceline.certificateVolumes" . | fromYamlArray }}
- {name: {{ .name }}, mountPath: /etc/paceline/{{ .name }}, readOnly: true}
{{- end }}
{{- end -}}

{{- define "paceline.serviceTlsSecret" -}}
{{- if .root.Values.tls.services.certManager.enabled -}}
{{ include "paceline.objectName" (dict "root" .root "component" .component) }}-tls
{{- else -}}
{{ required (printf "tls.services.existingSecrets.%s names the certificate of the %s, or enable tls.services.certManager" .component .component) (index .root.Values.tls.services.existingSecrets .component) }}
{{- end -}}
{{- end -}}

{{- define "paceline.publicTlsSecret" -}}
{{- if .Values.tls.public.certManager.enabled -}}
{{ include "paceline.objectName" (dict "root" . "component" "public") }}-tls
{{- else -}}
{{ required "tls.public.existingSecret names the gateways' certificate, or enable tls.public.certManager" .Values.tls.public.existingSecret }}
{{- end -}}
{{- end -}}

{{- define "paceline.redisTlsSecret" -}}
{{- if eq .Values.redis.mode "external" }}{{ .Values.redis.external.tls.existingSecret }}{{ end -}}
{{- end -}}
